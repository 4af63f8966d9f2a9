"""Data sets in tables: Parquet, folders of Hugging Face, LeRobot's episodes."""
