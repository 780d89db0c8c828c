"""Are the pictures right? One measure a file, each with one value a picture or line, so that callers can resample."""
