"""Sphinx's configuration, for ``make docs``."""

from hmac_file_server import __version__

project = "hmac-file-server"
release = __version__
extensions = ["sphinx_click"]
nitpicky = True
highlight_language = "none"
# Two hyphens are the beginning of an option.
smartquotes = False
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
