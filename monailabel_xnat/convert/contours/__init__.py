"""Labels that were drawn as contours: RTSTRUCT and AIM, and the filling of polygons."""
