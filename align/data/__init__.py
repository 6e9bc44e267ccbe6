"""Users' data: readers, validation, chat templates. Loads no torch."""
