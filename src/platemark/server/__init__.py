"""What Platemark serves over HTTP. Needs the extra `serve`; nothing here is imported unless a server is asked for."""
