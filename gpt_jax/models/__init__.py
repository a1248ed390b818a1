"""Pure Linen modules: arrays in, arrays out; no mesh, flag, file or clock."""
