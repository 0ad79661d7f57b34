/* The theme's Font Awesome script (1.5 MB) draws the icons that its web font draws as well: this empty file takes its place. */
