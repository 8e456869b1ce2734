"""One file an op: the public function, validation, schema, fake, autograd and the table of implementations."""
