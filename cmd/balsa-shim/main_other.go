//go:build !linux

// Command balsa-shim needs Linux; this twin only says so.
package main

func main() {
	println("balsa-shim needs Linux")
}
