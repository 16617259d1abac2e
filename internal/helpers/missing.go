//go:build !helpers

package helpers

func embedded() (map[string]string, error) { return nil, ErrNotEmbedded }

func release() {}
