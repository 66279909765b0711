"""Published methods, one file each; see kvfoot.core.hooks for the contract and kvfoot.core.registry for lookup."""
