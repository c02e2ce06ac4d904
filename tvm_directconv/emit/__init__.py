"""Programs to C sources, folders of C, and shared libraries."""
