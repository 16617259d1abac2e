package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/balsa-run/balsa/bench"
)

// store compares the store with etcd and the logs with one another. What is below
// its floor is an error.
func store(ctx context.Context, o options, ground *bench.Ground) error {
	ofStore, ofLog, err := storeOnly(o)
	if err != nil {
		return err
	}
	document := bench.StoreDocument{Date: time.Now(), Quick: o.quick, Some: len(o.only) > 0}
	if document.Machine, err = bench.ThisMachine(ground.Dir); err != nil {
		return err
	}
	if document.Version, err = version(ctx, ground.Programs.Balsa); err != nil {
		return err
	}
	if !document.Some || len(ofStore) > 0 {
		document.Peers, document.Results, err = takeStore(ctx, o, ground, ofStore)
		if len(document.Results) == 0 {
			return err
		}
	}
	if !document.Some || len(ofLog) > 0 {
		var logErr error
		document.Log, logErr = takeLog(ctx, o, ground, ofLog)
		err = errors.Join(err, logErr)
	}
	if o.out == "" {
		_, failed := os.Stdout.WriteString(document.Markdown())
		return errors.Join(err, failed, document.Missed())
	}
	return errors.Join(err, bench.WriteStore(o.out, document.Markdown()), document.Missed())
}

// storeOnly divides the names of the measures that were asked for.
func storeOnly(o options) (ofStore, ofLog []string, err error) {
	if len(o.only) > 0 && o.out != "" {
		return nil, nil, fmt.Errorf("-suite store -only ... -out %s: some measures are printed and not written: they would take the place of a whole document; leave out -out", o.out)
	}
	for _, name := range o.only {
		switch {
		case bench.IsOfLog(name):
			ofLog = append(ofLog, name)
		case slices.Contains(bench.StoreNames(), name):
			ofStore = append(ofStore, name)
		default:
			return nil, nil, fmt.Errorf("-suite store -only %s: there is no such measure; there are %s, and those of the log, log-…", name, strings.Join(bench.StoreNames(), ", "))
		}
	}
	return ofStore, ofLog, nil
}

// takeStore compares the store with etcd, all measures or those that were asked for.
func takeStore(ctx context.Context, o options, ground *bench.Ground, only []string) (versions string, all []bench.Comparison, err error) {
	peers, err := filepath.Abs(o.peers)
	if err != nil {
		return "", nil, err
	}
	g := &bench.StoreGround{Ground: ground, Client: filepath.Join(ground.Dir, "bin", "bench-client"), Peers: bench.StorePeers{Dir: peers}}
	if err := errors.Join(command(ctx, "tools/peers/etcd/build", peers), buildClient(ctx, g.Client)); err != nil {
		return "", nil, err
	}
	all, err = bench.StoreSuite{Ground: g, Only: only, Quick: o.quick, Progress: os.Stderr}.Run(ctx)
	return g.Peers.Versions(), all, err
}

// takeLog compares the logs, all measures or those that were asked for. Without
// the peer, for example because there is no network, they are not measured.
func takeLog(ctx context.Context, o options, ground *bench.Ground, only []string) (bench.LogDocument, error) {
	peers, err := filepath.Abs(o.peers)
	if err != nil {
		return bench.LogDocument{}, err
	}
	suite := bench.LogSuite{
		Program: filepath.Join(peers, "raftwal"), Dir: filepath.Join(ground.Dir, "log"), Only: only, Quick: o.quick, Progress: os.Stderr,
		Missing: command(ctx, "tools/peers/raftwal/build", peers),
	}
	document, err := suite.Run(ctx)
	return document, errors.Join(err, os.RemoveAll(suite.Dir))
}
