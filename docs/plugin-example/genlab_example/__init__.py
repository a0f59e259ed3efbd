"""One plug-in of each kind for GenLab: copy the file that you need."""
