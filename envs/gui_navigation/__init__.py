"""GUI navigation: graphs of screens and icons, to be walked by clicks."""
