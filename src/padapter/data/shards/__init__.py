"""Tar files of pictures and rows, for data that do not fit on one disk or lie on a network disk."""
