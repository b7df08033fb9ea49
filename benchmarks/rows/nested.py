"""Work that has threads or a parallel library inside: BLAS and scikit-learn."""

from __future__ import annotations

from benchmarks.row import Row


def _squares(count):
    return lambda size: [(seed, size) for seed in range(count)]


def _products(session, jobs):
    from benchmarks import array_tasks

    return session.run(array_tasks.product, jobs)


def _products_limit(jobs, n_jobs):
    from benchmarks import array_tasks

    return [array_tasks.product(job) for job in jobs]


def _blobs(size):
    from sklearn.datasets import make_classification

    return make_classification(n_samples=size, n_features=5, random_state=0)


def _cross_validation(data, n_splits=200):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import ShuffleSplit, cross_val_score

    features, labels = data
    splits = ShuffleSplit(n_splits=n_splits, test_size=0.3, random_state=0)
    return cross_val_score(LogisticRegression(), features, labels, cv=splits)


def _grid_search(data, n_points=100):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    features, labels = data
    grid = {"alpha": [0.01 * (i + 1) for i in range(n_points)]}
    search = GridSearchCV(Ridge(), grid, cv=5, refit=False)
    return search.fit(features, labels).cv_results_["mean_test_score"]


def _on_workers(fit):
    def work(session, data):
        with session.joblib_backend():
            return fit(data)

    return work


def _one_share(fit, count):
    def limit(data, n_jobs):
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return fit(data, count // n_jobs)

    return limit


ROWS = (
    Row(
        "blas-2",
        "8 products of 2000x2000 matrices, 2 workers",
        "processes",
        _squares(8),
        _products,
        2_000,
        1_000,
        close=True,
        observe=True,
        target=1.0,
        limit=_products_limit,
        limit_title="in the caller, all its threads",
    ),
    Row(
        "blas-8",
        "16 products of 2000x2000 matrices, 8 workers",
        "processes",
        _squares(16),
        _products,
        2_000,
        1_000,
        n_jobs=8,
        close=True,
        observe=True,
        target=1.0,
        versus={"mp_pool": 1.3},
        limit=_products_limit,
        limit_title="in the caller, all its threads",
    ),
    Row(
        "sklearn-cross-validation",
        "cross_val_score, logistic regression, 200 splits",
        "sklearn",
        _blobs,
        _on_workers(_cross_validation),
        200,
        200,
        close=True,
        requires="sklearn",
        target=1.5,
        limit=_one_share(_cross_validation, 200),
        limit_title="plain loop, over workers",
    ),
    Row(
        "sklearn-grid-search",
        "GridSearchCV over 500 cheap fits",
        "sklearn",
        _blobs,
        _on_workers(_grid_search),
        200,
        200,
        close=True,
        requires="sklearn",
        target=1.5,
        limit=_one_share(_grid_search, 100),
        limit_title="plain loop, over workers",
    ),
)
