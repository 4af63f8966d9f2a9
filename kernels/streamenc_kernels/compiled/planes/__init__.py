"""Products in whole numbers, by the matrix units that some processors have (AMX)."""
