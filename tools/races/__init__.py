"""The race reader: lanes of a kernel that meet in device memory without a barrier, found in its TTGIR."""
