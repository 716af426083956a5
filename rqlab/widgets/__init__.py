"""Live panels for notebooks: pure functions make text of a view, a thin shell of ipywidgets shows it."""
