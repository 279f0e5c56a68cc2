"""Version of the program, as it is named in commits, exports, and requests to the hub and to Wikipedia."""

VERSION = "0.2.0"
