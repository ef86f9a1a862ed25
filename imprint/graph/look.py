"""Sizes and colours of pictures of graphs."""

TITLE, TEXT, PORT = 10.0, 8.0, 7.5
"""Points: names of modules, what stands under them, ports."""
LINE, PORT_LINE, PAD = 0.155, 0.16, 0.1
"""Inches: lines of text, rows of ports, room between a frame and its text."""
GAP_X, GAP_Y, LANE, TURN, BEND, DOT = 0.75, 0.28, 0.24, 0.16, 0.38, 0.035
"""Inches: between columns, between boxes, ways back in time and their corners, edges side by side, radius of a port."""
MARGIN, LEGEND = 0.2, 0.34
SOURCE, LEARNS, OTHER, FRAME, QUIET = "#e9f2e3", "#e4edf8", "#f6f5f2", "#8a8a8a", "#555555"
OPEN, STOPPED = "#b8341b", "#5a5a5a"
DASHES = (0, (4, 2.5))
