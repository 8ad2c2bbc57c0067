"""Volume providers: their interface, and the provider ``local``."""
