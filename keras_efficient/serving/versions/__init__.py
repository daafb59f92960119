"""The folder of a version: where it goes, what lies in it, and whether it is whole."""
