"""The version of the program, for what names it: commits, exports, requests to the hub and to Wikipedia."""

VERSION = "0.1.0"
