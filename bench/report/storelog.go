package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/balsa-run/balsa/bench"
)

// takeLog compares the logs, all measures or those that were asked for. Without
// the peer, for example because there is no network, they are not measured.
func takeLog(ctx context.Context, o options, ground *bench.Ground) (bench.LogDocument, error) {
	peers, err := filepath.Abs(o.peers)
	if err != nil {
		return bench.LogDocument{}, err
	}
	suite := bench.LogSuite{
		Program: filepath.Join(peers, "raftwal"), Dir: filepath.Join(ground.Dir, "log"), Only: o.only, Quick: o.quick, Progress: os.Stderr,
		Missing: command(ctx, "tools/peers/raftwal/build", peers),
	}
	document, err := suite.Run(ctx)
	return document, errors.Join(err, os.RemoveAll(suite.Dir))
}

// addLog gives the store's document its section of the log.
func addLog(ctx context.Context, o options, ground *bench.Ground, document *bench.StoreDocument) (err error) {
	document.Log, err = takeLog(ctx, o, ground)
	return err
}

// storeOnly takes some measures of the log alone, without the clusters, and prints
// them. Those of the clusters share what they fill and cannot be taken alone.
func storeOnly(ctx context.Context, o options, ground *bench.Ground) error {
	if o.out != "" {
		return fmt.Errorf("-suite store -only ... -out %s: some measures are printed and not written: they would take the place of a whole document; leave out -out", o.out)
	}
	for _, name := range o.only {
		if !bench.IsOfLog(name) {
			return fmt.Errorf("-suite store -only %s: only measures of the log, log-…, can be taken alone", name)
		}
	}
	document, err := takeLog(ctx, o, ground)
	if err != nil {
		return err
	}
	_, err = os.Stdout.WriteString(document.Markdown(nil))
	return errors.Join(err, document.Missed())
}
