package ociarchive

import (
	"fmt"
	"strings"
)

// Limits of names (the distribution specification's).
const (
	maxNameBytes = 255
	maxTagBytes  = 128
)

// NormalizeName writes an image's name in the one form under which it is kept
// and looked up: "docker.io/" and "library/" are left out as people do, and a
// name without tag or digest gets ":latest". "docker.io/library/hello",
// "hello" and "hello:latest" are the same image.
func NormalizeName(name string) (string, error) {
	repo, digest, hasDigest := strings.Cut(name, "@")
	if hasDigest {
		if err := CheckDigest(digest); err != nil {
			return "", fmt.Errorf("image name %q: %w", name, err)
		}
	}
	repo, tag := splitTag(repo)
	repo = familiar(repo)
	if err := checkRepository(repo); err != nil {
		return "", fmt.Errorf("image name %q: %w", name, err)
	}
	if tag != "" && !isTag(tag) {
		return "", fmt.Errorf("image name %q: tag %q: want 1 to %d letters, digits, '_', '.' and '-': %w", name, tag, maxTagBytes, ErrInvalid)
	}
	switch {
	case hasDigest:
		return repo + "@" + digest, nil
	case tag == "":
		return repo + ":latest", nil
	}
	return repo + ":" + tag, nil
}

// splitTag: a colon before the last slash belongs to a port.
func splitTag(s string) (repo, tag string) {
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 || strings.IndexByte(s[colon:], '/') >= 0 {
		return s, ""
	}
	return s[:colon], s[colon+1:]
}

func familiar(repo string) string {
	for _, host := range []string{"docker.io/", "index.docker.io/"} {
		if rest, ok := strings.CutPrefix(repo, host); ok {
			return strings.TrimPrefix(rest, "library/")
		}
	}
	return repo
}

func checkRepository(repo string) error {
	if repo == "" || len(repo) > maxNameBytes {
		return fmt.Errorf("the repository must have 1 to %d bytes: %w", maxNameBytes, ErrInvalid)
	}
	parts := strings.Split(repo, "/")
	for i, part := range parts {
		port := i == 0 && len(parts) > 1
		if part == "" || !isAlnum(part[0]) || !isAlnum(part[len(part)-1]) {
			return fmt.Errorf("part %q of the repository must begin and end with a letter or digit: %w", part, ErrInvalid)
		}
		for _, c := range []byte(part) {
			if !isAlnum(c) && c != '.' && c != '-' && c != '_' && !(port && c == ':') {
				return fmt.Errorf("part %q of the repository: want lower-case letters, digits, '.', '-' and '_': %w", part, ErrInvalid)
			}
		}
	}
	return nil
}

func isAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func isTag(tag string) bool {
	for i, c := range []byte(tag) {
		word := isAlnum(c) || c >= 'A' && c <= 'Z' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return len(tag) <= maxTagBytes
}
