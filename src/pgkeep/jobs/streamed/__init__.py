"""A restore whose data come as a stream that cannot be asked again: Bacula's."""
