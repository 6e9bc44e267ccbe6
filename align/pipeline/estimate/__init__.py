"""What training will need: parameters that learn, memory and disk, from files and configuration alone. Loads no torch."""
