package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/balsa-run/balsa/chaos/load"
)

const (
	// writePatience is how long a put may take before the next member is asked.
	writePatience  = 250 * time.Millisecond
	answerPatience = 250 * time.Millisecond
	answerPause    = 10 * time.Millisecond
	answerLimit    = 2 * time.Minute
)

// etcdClients are one client for each address, so that no balancer chooses.
func etcdClients(o options) ([]*clientv3.Client, error) {
	certificate, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s holds no certificate", o.ca)
	}
	var clients []*clientv3.Client
	for _, address := range strings.Split(o.address, ",") {
		c, err := clientv3.New(clientv3.Config{
			Endpoints: []string{address}, Logger: zap.NewNop(),
			TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: pool, MinVersion: tls.VersionTLS12},
		})
		if err != nil {
			return nil, errors.Join(err, closeAll(clients))
		}
		clients = append(clients, c)
	}
	return clients, nil
}

func closeAll(clients []*clientv3.Client) error {
	var all []error
	for _, c := range clients {
		all = append(all, c.Close())
	}
	return errors.Join(all...)
}

// etcdWrites puts one key after the other, to each member in turn, until it is
// told to end, and reports when each acknowledged put began and ended.
func etcdWrites(ctx context.Context, o options) (spans []load.Span, err error) {
	clients, err := etcdClients(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll(clients)) }()
	for i := 0; ctx.Err() == nil; i++ {
		if span, ok := put(clients[i%len(clients)], i); ok {
			spans = append(spans, span)
		}
	}
	return spans, nil
}

func put(c *clientv3.Client, i int) (load.Span, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), writePatience)
	defer cancel()
	began := time.Now()
	_, err := c.Put(ctx, fmt.Sprintf("gap-%d", i%100), "value")
	return load.Span{BeganUS: began.UnixMicro(), EndedUS: time.Now().UnixMicro()}, err == nil
}

// answer waits until a member answers a linearizable read, and reports when, in
// microseconds of Unix time. Each try has a connection of its own: a client that
// was refused waits before it tries again.
func answer(ctx context.Context, o options) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	for {
		err := askOnce(ctx, o)
		if err == nil {
			return time.Now().UnixMicro(), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s does not answer: %w", o.address, err)
		case <-time.After(answerPause):
		}
	}
}

func askOnce(ctx context.Context, o options) (err error) {
	clients, err := etcdClients(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(clients)) }()
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	_, err = clients[0].Get(ctx, "bench")
	return err
}
