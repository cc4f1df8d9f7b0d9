"""Tools of this repository that no user needs."""
