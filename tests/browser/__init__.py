"""What a person sees: pages in a real chromium, served by Voila, by JupyterLab, or by nobody.

Nothing here leaves the machine: servers listen on loopback alone, and chromium resolves no other name.
"""
