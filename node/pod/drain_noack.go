//go:build balsa_noack

package pod

// waits: this build stops pods at once, and so drops requests.
const waits = false
