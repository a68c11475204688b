"""The other libraries, each as its documentation has it at its best; one small program each, see ``protocol``."""
