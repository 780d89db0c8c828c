"""Text lines to conditioning: fonts, glyphs, the batch, and a data set made up on the spot."""
