// Specprog is the program of the test's image that no shell can replace. As a
// set-uid file it tells by whose rights it runs.
//
//	specprog euid          print the effective user's id
//	specprog grpc PORT     answer gRPC health checks: "app" serves, "down" does not
//	specprog https PORT    answer HTTPS requests, with a certificate nobody signed
//	specprog udp PORT      answer "udp" to every datagram
//	specprog get URL       print what is there
//	specprog ask ADDRESS   send a datagram and print the answer
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const patience = 2 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "euid":
		_, err := fmt.Println(os.Geteuid())
		return err
	case len(args) == 2 && args[0] == "grpc":
		return serveHealth(":" + args[1])
	case len(args) == 2 && args[0] == "https":
		return serveTLS(":" + args[1])
	case len(args) == 2 && args[0] == "udp":
		return serveUDP(":" + args[1])
	case len(args) == 2 && args[0] == "get":
		return get(args[1])
	case len(args) == 2 && args[0] == "ask":
		return ask(args[1])
	}
	return errors.New("usage: specprog euid | (grpc|https|udp) PORT | get URL | ask ADDRESS")
}

func serveHealth(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	state := health.NewServer()
	state.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	state.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	state.SetServingStatus("app", healthpb.HealthCheckResponse_SERVING)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, state)
	return server.Serve(listener)
}

func serveTLS(address string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr: address, ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/healthy" || r.Header.Get("X-Asked-By") != "probe" {
				http.Error(w, "neither the path nor the header of the probe", http.StatusInternalServerError)
			}
		}),
	}
	return server.ListenAndServeTLS("", "")
}

func get(url string) error {
	client := &http.Client{Timeout: patience}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

func ask(address string) error {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	buffer := make([]byte, 64)
	n, err := conn.Read(buffer)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(buffer[:n])
	return err
}

func serveUDP(address string) error {
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	buffer := make([]byte, 1)
	for {
		_, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo([]byte("udp\n"), from); err != nil {
			return err
		}
	}
}
