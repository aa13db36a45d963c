"""The labeler: harm scores, their calibration, and the files of labels."""
