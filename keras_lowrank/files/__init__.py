"""Files that are written whole or not at all, and checksums of weights files."""
