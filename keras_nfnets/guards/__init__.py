"""Reading files of unknown origin, within limits of memory and time."""
