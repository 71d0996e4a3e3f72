"""Where the cameras of pictures, renders and views stand, unless it is said."""

FOVY = 49.1  # degrees
RADIUS = 1.5  # from the origin, world units
ELEVATION = 10.0  # degrees
PICTURED = -10.0, 40.0  # elevations that a picture may be taken from, degrees
BAND = -15.0, 50.0  # elevations of free views, from which a generator learns what is behind; degrees
SQUARE = 10.0  # azimuth off an object's front, back or side up to which it is seen squarely, degrees
NEAR, FAR = 0.5, 2.5  # depths that are drawn
