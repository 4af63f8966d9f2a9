"""Text in segments: lines, transcripts and captions, with their times and their revisions."""
