"""Files of pictures: ffmpeg, encoding, joining."""
