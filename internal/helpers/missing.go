//go:build !helpers

package helpers

func embedded() (map[string][]byte, error) { return nil, ErrNotEmbedded }
