"""Pictures and explorers that only lessons use."""
