"""What makes networks fast and changes nothing that they compute."""
