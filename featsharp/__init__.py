"""A teacher's coarse feature map → a sharper one."""
