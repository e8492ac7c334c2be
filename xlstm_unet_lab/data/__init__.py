"""Data: recipes that prepare a data set, data sets that read it, patches, augmentation."""
