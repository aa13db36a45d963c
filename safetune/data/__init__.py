"""Data sets made and tended: pictures from prompts, duplicates, pictures from the web, cached encodings."""
