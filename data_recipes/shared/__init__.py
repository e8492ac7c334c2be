"""What several recipes share and nobody else needs: it stands beside them, so that the library holds what it runs.

`writing` writes cases, `conversion` goes on where it was interrupted, `pictures` pairs pictures with their labels,
`instances` makes classes of objects, `phantom_physics` is behind the phantoms. Every module of `data_recipes` itself is
a data set.
"""
