"""The program: reads settings, composes the four libraries, runs them."""
