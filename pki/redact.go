package pki

// Everything that holds a secret prints as a name, whatever the verb: logs and
// test failures are the usual way of secrets into the open.

// String does not print the key.
func (ca CA) String() string { return "CA of cluster " + ca.clusterID }

// GoString keeps the key out of %#v as well.
func (ca CA) GoString() string { return ca.String() }

// String does not print the key.
func (c Credential) String() string {
	return "credential of " + c.identity.String() + " in cluster " + c.ClusterID()
}

// GoString keeps the key out of %#v as well.
func (c Credential) GoString() string { return c.String() }

// String does not print the keys.
func (k Keyring) String() string { return "seal keys " + k.idList() }

// GoString keeps the keys out of %#v as well.
func (k Keyring) GoString() string { return k.String() }

// String does not print the keys.
func (b Bundle) String() string { return "server bundle of cluster " + b.CA.clusterID }

// GoString keeps the keys out of %#v as well.
func (b Bundle) GoString() string { return b.String() }

// String does not print the key.
func (c Config) String() string { return "client configuration of cluster " + clip(c.ClusterID) }

// GoString keeps the key out of %#v as well.
func (c Config) GoString() string { return c.String() }

// String does not print the key or the token's secret.
func (j Joiner) String() string { return "join of " + string(j.role) + "/" + j.name }

// GoString keeps the secrets out of %#v as well.
func (j Joiner) GoString() string { return j.String() }
