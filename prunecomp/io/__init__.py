"""What crosses the border of the package: arguments, JSON, text on its way out, streams and signals."""
