//go:build !balsa_noack

package pod

// waits: a pod is stopped only once no node sends new connections to it. Builds
// with the tag balsa_noack do not wait: with them the test of dropped requests has
// to fail.
const waits = true
